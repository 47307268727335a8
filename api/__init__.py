"""The HTTP edge: dialects, images, the guarded fetch and the server around them."""
