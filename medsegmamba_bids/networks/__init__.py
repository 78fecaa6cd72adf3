"""Networks, their selective scan and their weights. Knows nothing of images or Nipype."""
