curl -X POST http://localhost:8000/generate \
  -H "Content-Type: application/json" \
  -d '{
    "prompt": "A beautiful landscape",
    "height": 1024,
    "width": 1024
  }'
