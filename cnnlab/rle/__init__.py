"""Masks of single objects as run lengths, as COCO defines them; NumPy only.

A mask is a list of counts: so many pixels outside, so many inside, and so on, down each column and from the left
column to the right one. The functions agree with pycocotools in every pixel and every byte.
"""

from cnnlab.rle.bitmaps import areas, bounding_boxes, crop_of, decode, encode, encode_crop
from cnnlab.rle.intersection import intersections
from cnnlab.rle.outlines import outline
from cnnlab.rle.pasting import paste
from cnnlab.rle.polygons import from_polygons
from cnnlab.rle.runs import Crop, Rle
from cnnlab.rle.text import from_counts, from_text, from_texts, to_text, to_texts

__all__ = [
    "Crop",
    "Rle",
    "areas",
    "bounding_boxes",
    "crop_of",
    "decode",
    "encode",
    "encode_crop",
    "from_counts",
    "from_polygons",
    "from_text",
    "from_texts",
    "intersections",
    "outline",
    "paste",
    "to_text",
    "to_texts",
]
