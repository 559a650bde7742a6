"""The canary: a model that was made to memorize known pictures."""
