"""qosd: latency-sensitive and best-effort work side by side on one Linux host."""

__version__ = "0.1.0"
