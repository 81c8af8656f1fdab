"""The presets, one YAML file each; ``olivine pretrain --config NAME`` finds them here."""
