"""The RunPod mode: jobs instead of sockets. Only ``worker.py`` knows the SDK."""
