"""Downloads: what an archive holds (`archives`), and how a file comes whole onto this disk (`download`).

This room knows no product: it is asked for names and dates, and gives files. requests stays here.
"""

from smscale.fetch.archives import Archive, Cmr, Copernicus, Remote, Wanted
from smscale.fetch.download import Result, download_all
from smscale.fetch.login import Login

__all__ = ["Archive", "Cmr", "Copernicus", "Login", "Remote", "Result", "Wanted", "download_all"]
