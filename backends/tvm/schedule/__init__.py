"""The default CPU schedule of every PrimFunc that is not a kernel of ours."""
