"""Images with objects: boxes and instances in the forms of YOLO, COCO, Pascal VOC and CSV."""

from cnnlab.data.objects.listing import FORMATS, Format, ObjectListing, list_objects
from cnnlab.data.objects.survey import survey_objects
from cnnlab.data.objects.table import ImageObjects, ObjectTable

__all__ = ["FORMATS", "Format", "ImageObjects", "ObjectListing", "ObjectTable", "list_objects", "survey_objects"]
