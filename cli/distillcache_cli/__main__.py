"""`python -m distillcache_cli` is `distillcache`."""

from distillcache_cli.app import main

if __name__ == "__main__":
    main()
