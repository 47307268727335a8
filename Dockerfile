# The version that every test runs on. A plain Python image, not a CUDA one: torch's wheel brings the
# CUDA libraries it was built with, so a CUDA base would only add a second copy of gigabytes.
FROM python:3.11-slim-bookworm

# The driver comes from the host. CUDA base images ask for it through these variables; this one must itself.
ENV NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility

# RunPod mounts cached models and network volumes here. Without a volume it is the container's disk.
ENV HF_HOME=/runpod-volume/huggingface-cache \
    HUGGINGFACE_HUB_CACHE=/runpod-volume/huggingface-cache/hub

# The SDK's own default is DEBUG, at which it prints every result, picture included.
ENV RUNPOD_LOG_LEVEL=INFO \
    PYTHONUNBUFFERED=1

WORKDIR /app

# Before the sources, so that a change of code does not install torch again.
COPY requirements.txt requirements-da3.txt ./
# The second without dependencies: it names a hundred for its tools, a torchvision among them.
RUN pip install --no-cache-dir --disable-pip-version-check -r requirements.txt \
    && pip install --no-cache-dir --disable-pip-version-check --no-deps -r requirements-da3.txt

COPY . .

# To bake a model in, add here: RUN python handler.py download qwen-image-edit-2509
# With the ENV above it lands where the worker looks; a volume mounted there later would hide it, so set
# HF_HOME and HUGGINGFACE_HUB_CACHE to a folder of the image first.

# Root stays: RunPod mounts volumes owned by root, and the worker downloads checkpoints to them.

EXPOSE 8000

# Asks /live in the HTTP mode; the queue worker has no port, and RunPod watches it by its own heartbeat.
# The settings are read by the one module that knows them, so every name of the port counts.
HEALTHCHECK --interval=10s --timeout=5s --start-period=30s --retries=3 \
    CMD ["python", "-c", "import settings, urllib.request as u; s = settings.load(); s.standalone_mode and u.urlopen(f'http://127.0.0.1:{s.api_port}/live', timeout=3)"]

# No shell in between: python is process 1 and gets SIGTERM itself, which is what starts the drain.
CMD ["python", "handler.py"]
