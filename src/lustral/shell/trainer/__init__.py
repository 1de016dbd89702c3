"""What ``lustral train`` does around the loop."""
