"""`python -m modelmesh` is `modelmesh`."""

from modelmesh.cli.main import main

if __name__ == "__main__":
    main()
