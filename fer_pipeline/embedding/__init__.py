"""Decode aligned faces and run a network over them: faces become feature vectors."""
