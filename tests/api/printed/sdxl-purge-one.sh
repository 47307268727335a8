curl -X POST http://localhost:8001/v1/models/purge \
  -H 'Content-Type: application/json' \
  -H 'X-API-Key: <clave>' \
  -d '{"model_id":"stabilityai/sdxl-turbo"}'
