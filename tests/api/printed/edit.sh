   curl -X POST "http://localhost:7000/edit" \
  -F "image=@/path/to/your/image.jpg" \
  -F "prompt=Add a red hat on the dog" \
  -F "seed=42" \
  -F "guidance_scale=7.0" \
  -F "steps=28" \
  --output result.png
