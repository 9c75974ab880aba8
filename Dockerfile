# A server of one model or several, on a CPU:
#   docker build -t clue_jax .
#   docker run --rm -p 127.0.0.1:8000:8000 -v "$PWD/work/topic/best:/models/topic:ro" clue_jax --model topic=/models/topic
FROM python:3.12-slim

WORKDIR /app
COPY requirements-serve.txt .
RUN pip install --no-cache-dir -r requirements-serve.txt
COPY clue_jax/ clue_jax/
COPY tools/__init__.py tools/serve.py tools/

# Nothing is written where it runs, and it needs no rights.
RUN useradd --system --no-create-home clue
USER clue
ENV JAX_PLATFORMS=cpu PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1
EXPOSE 8000
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=3s --start-period=10s \
  CMD ["python", "-c", "import urllib.request as r; r.urlopen('http://127.0.0.1:8000/health')"]
ENTRYPOINT ["python", "-m", "tools.serve", "--host", "0.0.0.0"]
CMD ["--help"]
