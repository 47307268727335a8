export REQUIRE_API_KEY=1
export API_KEY=mysecret
curl -X POST http://localhost:8001/v1/generate \
  -H 'Content-Type: application/json' \
  -H 'X-API-Key: mysecret' \
  -d '{"prompt":"a product photo","params":{"width":512,"height":512,"steps":8,"cfg":5}}'
