"""Numbers only: numpy, torch, faiss, networkx. No Beam, no files, nothing of the lake."""
