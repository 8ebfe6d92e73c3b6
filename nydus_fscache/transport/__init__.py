"""The dialects in which a kernel asks for bytes.  A transport knows no backend."""
