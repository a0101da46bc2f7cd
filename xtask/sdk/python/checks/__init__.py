"""What the official SDKs must find at a running server, one function a sentence."""
