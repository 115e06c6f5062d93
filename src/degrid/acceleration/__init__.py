"""Networks made faster: batch norm folded into convolutions, and convolutions computed in another way."""
