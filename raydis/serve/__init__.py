"""Ray Serve: one deployment that encodes and edits images over HTTP.

app.py is the only file that speaks Ray. Below it: api.py (routes), service.py (what a request needs of the
model), model.py (one opened version, run in fixed batch shapes), batcher.py, images.py and schemas.py.
"""
