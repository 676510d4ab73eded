"The documentation site: one navigation, nbdev's own processing, and two renderers that make the same pages of it"
