"""Anti-entropy: heads, ranges and blobs between members, verified before they are stored."""
