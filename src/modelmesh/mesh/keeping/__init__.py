"""What is done though no request waits: copies that are to be there, more of them in demand and fewer after it, losses made good,
free memory filled. Mostly by the keeper of a model.
"""
