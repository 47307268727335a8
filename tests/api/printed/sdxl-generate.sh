curl -X POST http://localhost:8001/v1/generate \
  -H 'Content-Type: application/json' \
  -d '{"prompt":"hyperrealistic portrait of a cyberpunk samurai","params":{"width":512,"height":512,"steps":15,"cfg":6.5}}'
