"""What x0 is made of: one file per space, with how it is read from a batch, normalized and decoded.

The stages and the packages of training and sampling may import this package. It imports the libraries and artifacts.
"""
