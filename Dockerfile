# pixart serve on a CPU, with the shipped model. Not built anywhere yet: it was written where no container can be built.
#   docker build -t pixart .
#   docker run -p 8000:8000 -e PIXART_API_KEY=at-least-16-characters pixart --allowed-host images.example.org
FROM python:3.12-slim

WORKDIR /pixart
COPY pyproject.toml constraints.txt README.md LICENSE NOTICE ./
COPY src src
RUN pip install --no-cache-dir -c constraints.txt '.[serve]' \
    && useradd --create-home serving
USER serving
WORKDIR /home/serving
EXPOSE 8000
HEALTHCHECK --start-period=60s CMD ["python", "-c", \
    "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8000/readyz', timeout=5)"]
# An address that others reach: the server refuses to start without PIXART_API_KEY.
ENTRYPOINT ["pixart", "serve", "--host", "0.0.0.0"]
