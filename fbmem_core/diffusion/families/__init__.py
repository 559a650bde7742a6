"""One file for each kind of network that an audit can look into; see `denoiser`."""
