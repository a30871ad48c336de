"""Small synthetic copies of public sets, in their layouts, with the faults that downloads have."""

from pathlib import Path

import cv2
import numpy as np

from tests.conftest import tissue_image


def picture(seed: int, size: tuple[int, int] = (96, 80)) -> np.ndarray:
    """A picture of tissue, (H, W, 3) uint8 RGB; every seed gives another."""
    return tissue_image(*size, seed % 16, brown=0.1 * (seed % 9))[:: 1 if seed % 2 else -1].copy()


def write_picture(path: Path, seed: int, size: tuple[int, int] = (96, 80)) -> Path:
    """Write a picture in the format of its suffix."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rgb = picture(seed, size)
    rgb[0, 0] = (seed % 256, seed // 256, 77)
    ok, data = cv2.imencode(path.suffix, cv2.cvtColor(rgb, cv2.COLOR_RGB2BGR))
    assert ok
    path.write_bytes(data.tobytes())
    return path


def touch(path: Path, content: bytes = b"MM\0*") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content + path.name.encode())
    return path


def make_bci(root: Path) -> Path:
    """BCI: pairs, one without its H&E picture, one in the wrong split, one without a score."""
    for number, (split, score) in enumerate([("train", "0"), ("train", "1+"), ("test", "2+"), ("test", "3+")]):
        for stain in ("HE", "IHC"):
            write_picture(root / stain / split / f"{number:05}_{split}_{score}.png", 10 * number + (stain == "HE"))
    (root / "HE/test/00003_test_3+.png").unlink()
    write_picture(root / "IHC/train/00009_test_1+.png", 91)
    write_picture(root / "IHC/train/00010_train.png", 92)
    return root


def make_her2_ihc_40x(root: Path) -> Path:
    """HER2-IHC-40x: two slides in two classes, one of them in both splits; the second part is still packed."""
    patches = root / "Patch-based-dataset"
    for number, (split, folder, name) in enumerate(
        [("train", "class_0", "12_1"), ("train", "class_0", "12_2"), ("test", "class_0", "12_3"),
         ("train", "class_3+", "S7_x0_y224"), ("test", "class_2+", "9 (4)"), ("test", "class_2+", "nine")]
    ):  # fmt: skip
        write_picture(patches / f"{split}_data_patch" / folder / f"{name}.png", number)
    write_picture(root / "Patch-based-dataset/train_data_patch/other/1_1.png", 20)
    touch(root / "WSI-based-dataset.zip", b"PK\3\4")
    return root


def make_ihc4bc(root: Path) -> Path:
    """IHC4BC: two patients with sub-regions, three markers, H&E, and a picture outside its folders."""
    images = root / "IHC4BC_Compressed/Images"
    number = 0
    for stain in ("HandE", "IHC"):
        for marker in ("Her2", "ER", "Ki67"):
            for patient, region in (
                ("Patient_1", "Subregion_1"),
                ("Patient_1", "Subregion_2"),
                ("Patient_2", "Subregion_1"),
            ):
                write_picture(images / stain / marker / patient / region / "0001.jpg", number := number + 1)
    write_picture(images / "IHC/stray.jpg", 99)
    return root


def make_single_folder(root: Path) -> Path:
    """Cores SCORE_NAME.jpg and a table: one in another word, one missing, one not in the table, one misnamed."""
    for number, name in enumerate(("3_a.jpg", "2_b.jpg", "2_c.jpg", "1_d.jpg", "0_e.jpg", "1_f.jpg", "holiday.jpg")):
        write_picture(root / name, number)
    rows = ["3,1,3_a", "2,1,2_b", "2,0,2_c", "1,0,1_d", "0,0,0_e", "3,1,3_gone"]
    lines = [f"{score},{status},./data/{name}.jpg,0" for score, status, name in (row.split(",") for row in rows)]
    (root / "train.csv").write_text("\n".join(["ihc-score,her2-status,filename,sampler", *lines]) + "\n")
    return root


def make_warwick(root: Path) -> Path:
    """Warwick: two IHC and two H&E slides, a table with a case more and a doubled one, a misnamed slide."""
    for name in ("01_Her2.ndpi", "01_HE.ndpi", "06_Her2.ndpi", "06_HE.ndpi", "11_Her2.ndpi", "case12.ndpi"):
        touch(root / name)
    rows = ["1,3+,Warwick,01_Her2.ndpi,01_HE.ndpi", "6,0,Warwick,x,y", "9,2,Warwick,x,y", "6,1,Warwick,x,y"]
    (root / "labels.csv").write_text("CaseNo,HeR2 SCORE,source,image_her2,image_he\n" + "\n".join(rows) + "\n")
    return root


def make_herohe(root: Path) -> Path:
    """HEROHE: MRXS with folders, one without, the one without tumour, and a semicolon table."""
    for number in ("1", "2", "325"):
        touch(root / f"{number}.mrxs", b"\xff\xd8")
        touch(root / number / "Data0000.dat")
    touch(root / "3.mrxs", b"\xff\xd8")
    (root / "truth.csv").write_text("name;status\n1;Positive\n2;Negative\n4;Negative\n")
    return root
