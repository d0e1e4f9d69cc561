"""The version of the package, below everything else: modules that need it do not import the package's root."""

__version__ = "0.1.0"
