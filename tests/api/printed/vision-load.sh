# Load model
curl -X POST http://localhost:8000/models/load \
  -H "Content-Type: application/json" \
  -d '{"model_type": "sam3", "device": "cuda"}'
