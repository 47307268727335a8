"""Model families behind one protocol, and what keeps them loaded. Knows nothing of batching or HTTP."""
