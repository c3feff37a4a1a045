"""The intermediate representation: a program of functional ATen operators in a torch.fx graph."""
