   curl http://localhost:8001/health
