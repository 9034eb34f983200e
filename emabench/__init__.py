"""emabench: does averaging the weights help, by how much, with which decay, and does the published number hold?"""

__version__ = "0.1.0"
