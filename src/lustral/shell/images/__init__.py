"""Images from disk and from the net, and back."""
