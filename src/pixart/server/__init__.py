"""The HTTP server: OpenAI's images API and A1111's, over the batching engine."""
