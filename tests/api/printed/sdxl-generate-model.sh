curl -X POST http://localhost:8001/v1/generate \
  -H 'Content-Type: application/json' \
  -d '{"prompt":"dramatic cinematic landscape","params":{"width":512,"height":512,"steps":10,"cfg":5.5,"model":"stabilityai/sdxl-lightning"}}'
