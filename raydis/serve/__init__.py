"""The HTTP service on Ray Serve: one deployment that encodes and edits images.

Only app.py imports Ray. It uses api.py (the routes), service.py (the steps of a request), model.py (one version of a
model, run in batches of a fixed shape), batcher.py (requests to batches), images.py (uploads to pixels) and schemas.py
(the JSON of requests and answers).
"""
