curl -X POST http://localhost:8001/v1/models/purge \
  -H 'X-API-Key: <clave>'
