"""Pictures: what is drawn where, in which colour, and that names can be read."""

import numpy as np
import pytest

from detector.visualize import class_color, draw_instances, grid, panel
from detector.visualize.colors import relative_luminance, text_color
from detector.visualize.instances import picture_zoom
from detector.visualize.labels import place_plates, plate_size
from detector.visualize.regions import dilate, erode, regions_from_masks, regions_from_rings


def flat(height, width, value=0):
    return np.full((height, width, 3), value, np.uint8)


def changed(picture, image):
    return (picture.astype(int) != image.astype(int)).any(2)


def one(box, mask=None, rings=None, image=None, score=0.9, name="cat"):
    image = flat(700, 900, 60) if image is None else image
    masks = None if mask is None else np.asarray(mask)[None]
    scores = None if score is None else np.array([score])
    rings = None if rings is None else [rings]
    boxes, labels = np.array([box], float), np.array([0])
    return draw_instances(image, boxes, labels, [name], scores, masks, rings), image


# Colours.


def test_colors_of_classes_are_far_apart():
    colors = np.array([class_color(k) for k in range(12)], float)
    distances = np.linalg.norm(colors[:, None] - colors[None], axis=2)
    assert distances[~np.eye(12, dtype=bool)].min() > 35
    assert len({class_color(k) for k in range(100)}) == 100


def oklab(color):
    srgb = np.asarray(color) / 255
    linear = np.where(srgb <= 0.04045, srgb / 12.92, ((srgb + 0.055) / 1.055) ** 2.4)
    cones = np.array(
        [
            [0.4122214708, 0.5363325363, 0.0514459929],
            [0.2119034982, 0.6806995451, 0.1073969566],
            [0.0883024619, 0.2817188376, 0.6299787005],
        ]
    )
    to_lab = np.array(
        [
            [0.2104542553, 0.7936177850, -0.0040720468],
            [1.9779984951, -2.4285922050, 0.4505937099],
            [0.0259040371, 0.7827717662, -0.8086757660],
        ]
    )
    return to_lab @ np.cbrt(cones @ linear)


def test_instances_look_closer_to_their_class_than_to_another():
    for label in range(8):
        for instance in range(9):
            shade = oklab(class_color(label, instance))
            distances = [np.linalg.norm(shade - oklab(class_color(k))) for k in range(8)]
            assert np.argmin(distances) == label


def test_text_on_every_class_color_has_the_contrast_wcag_asks_for():
    for k in range(100):
        background = relative_luminance(class_color(k))
        ink = relative_luminance(text_color(class_color(k)))
        contrast = (max(ink, background) + 0.05) / (min(ink, background) + 0.05)
        assert contrast >= 4.5


# Regions.


@pytest.mark.parametrize("zoom", [1, 2, 5])
def test_all_sources_of_masks_give_the_same_region(zoom):
    """A rectangle on pixel borders, as bitmap, as box mask and as ring."""
    bitmap = np.zeros((1, 30, 40), bool)
    bitmap[0, 5:15, 8:28] = True
    box = np.array([[8.0, 5.0, 28.0, 15.0]])
    ring = np.array([[8, 5], [28, 5], [28, 15], [8, 15]], float)
    expected = np.zeros((30 * zoom, 40 * zoom), bool)
    expected[5 * zoom : 15 * zoom, 8 * zoom : 28 * zoom] = True
    # Bitmaps lose the tip of a corner to smoothing, masks to the fading outside their cells.
    for regions, slack in (
        (regions_from_masks(bitmap, box, 30, 40, zoom), 0.002),
        (regions_from_masks(np.ones((1, 28, 28), np.float32), box, 30, 40, zoom), 0.002),
        (regions_from_rings([[ring]], 30, 40, zoom), 0.0),
    ):
        (region,) = regions
        found = np.zeros_like(expected)
        rows, columns = region.bitmap.shape
        found[region.top : region.top + rows, region.left : region.left + columns] = region.bitmap
        assert (found != expected).sum() <= slack * expected.sum()


def test_rings_wind_to_holes_and_unions():
    outer = np.array([[0, 0], [20, 0], [20, 20], [0, 20]], float)
    hole = np.array([[5, 5], [5, 15], [15, 15], [15, 5]], float)
    overlapping = outer + [10, 0]
    (with_hole,) = regions_from_rings([[outer, hole]], 40, 40, 1)
    assert not with_hole.bitmap[10, 10] and with_hole.bitmap[2, 2] and with_hole.bitmap[18, 10]
    (union,) = regions_from_rings([[outer, overlapping]], 40, 40, 1)
    assert union.bitmap[10, 15], "two parts of one orientation unite where they overlap"


def test_eroding_and_dilating_move_the_rim_by_the_steps():
    square = np.zeros((20, 20), bool)
    square[6:14, 6:14] = True
    core, grown = erode(square, 2), dilate(square, 3)
    assert np.array_equal(np.argwhere(core)[[0, -1]], [[8, 8], [11, 11]])
    assert grown[3:17, 9].all() and not grown[2, 9] and not grown[17, 9]
    assert not grown[3, 3], "corners are cut: the pen is nearly round"
    full = np.ones((5, 5), bool)
    assert erode(full, 1).sum() == 9, "beyond the bitmap there is nothing"


# Drawing.


def test_nothing_to_draw_leaves_the_image():
    image = np.random.default_rng(0).integers(0, 256, (700, 900, 3), dtype=np.uint8)
    for masks in (None, np.zeros((0, 28, 28), np.float32), np.zeros((0, 700, 900), bool)):
        picture = draw_instances(image, np.zeros((0, 4)), np.zeros(0, int), [], np.zeros(0), masks)
        assert np.array_equal(picture, image)


def test_the_image_given_is_not_drawn_on():
    image = flat(700, 900)
    one([100, 100, 300, 300], np.ones((28, 28), np.float32), image=image)
    assert not image.any()


@pytest.mark.parametrize("value", [0, 60, 128, 250])
def test_mask_is_filled_and_rimmed_on_any_background(value):
    picture, image = one(
        [300, 200, 600, 500], np.ones((28, 28), np.float32), image=flat(700, 900, value)
    )
    color = np.array(class_color(0), float)
    inside = picture[350, 450].astype(float)
    assert np.linalg.norm(inside - color) < np.linalg.norm(image[350, 450] - color)
    rim, outside = picture[350, 301].astype(float), picture[350, 280].astype(float)
    assert np.linalg.norm(rim - outside) > 90, "the contour stands out from the background"
    assert np.array_equal(outside, image[350, 280])


def test_drawing_stays_near_the_instance():
    picture, image = one([300, 200, 600, 500], np.ones((28, 28), np.float32))
    rows, columns = np.nonzero(changed(picture, image))
    plate_height = plate_size("cat", 20)[1]
    assert rows.min() >= 200 - plate_height - 10 and rows.max() < 510
    assert columns.min() >= 290 and columns.max() < 610


@pytest.mark.parametrize(
    "box", [[0, 0, 900, 700], [-20, -30, 50, 60], [850, 650, 950, 750], [899.6, 3, 900, 4]]
)
def test_instances_at_and_over_the_border(box):
    picture, image = one(box, np.ones((28, 28), np.float32))
    assert picture.shape == image.shape and changed(picture, image).any()


def test_small_images_are_enlarged_by_whole_factors():
    for side, zoom in ((32, 20), (128, 5), (256, 2), (640, 1), (4000, 1)):
        assert picture_zoom(side, side // 2) == zoom
    picture, _ = one([3, 3, 20, 20], image=flat(32, 64))
    assert picture.shape == (32 * 10, 64 * 10, 3)


def test_lines_and_text_grow_with_the_image():
    def rim(side):
        image = flat(side, side, 60)
        box = [side * 0.25, side * 0.25, side * 0.75, side * 0.75]
        picture, _ = one(box, image=image)
        return changed(picture, image)[side // 2, : side // 2].sum()

    assert rim(3000) > 2 * rim(900)


def test_same_class_looks_the_same_in_every_picture():
    first, _ = one([300, 200, 600, 500], np.ones((28, 28), np.float32))
    boxes = np.array([[10.0, 10, 100, 100], [300, 200, 600, 500]])
    both = draw_instances(
        flat(700, 900, 60), boxes, np.array([3, 0]), ["emu", "cat"], np.array([0.9, 0.9]),
        np.ones((2, 28, 28), np.float32),
    )  # fmt: skip
    assert np.array_equal(both[190:510, 290:610], first[190:510, 290:610])


# Plates.


def overlaps(plates):
    spots = np.array([[p.left, p.top, p.left + p.width, p.top + p.height] for p in plates])
    low = np.maximum(spots[:, None, :2], spots[None, :, :2])
    high = np.minimum(spots[:, None, 2:], spots[None, :, 2:])
    common = (high - low).clip(0).prod(2)
    return common[~np.eye(len(spots), dtype=bool)]


def test_plates_stay_inside_and_off_each_other():
    rng = np.random.default_rng(0)
    corners = np.sort(rng.uniform(-20, 660, (60, 2, 2)), axis=1)
    boxes = corners.reshape(-1, 4)
    texts = [[f"a long name {i}%", f"{i}%"] for i in range(60)]
    plates = [plate for plate in place_plates(boxes, texts, 14, 480, 640) if plate is not None]
    assert len(plates) > 40
    assert overlaps(plates).max() == 0
    for plate in plates:
        assert plate.left >= 0 and plate.left + plate.width <= 640
        assert plate.top >= 0 and plate.top + plate.height <= 480


def test_plate_goes_above_the_top_left_corner_where_there_is_room():
    (plate,) = place_plates(np.array([[100.0, 100, 300, 300]]), [["cat"]], 14, 480, 640)
    assert (plate.left, plate.top + plate.height) == (100, 100)


def test_equal_boxes_get_plates_beside_each_other():
    boxes = np.array([[100.0, 100, 300, 300]] * 6)
    plates = place_plates(boxes, [["someone 90%"]] * 6, 14, 480, 640)
    assert None not in plates and overlaps(plates).max() == 0


def test_where_there_is_no_room_the_text_shrinks_and_then_the_plate_is_left_out():
    boxes = np.array([[0.0, 0, 115, 20]] * 9)
    plates = place_plates(boxes, [["name 90%", "90%"]] * 9, 14, 40, 115)
    assert plates[0].text == "name 90%" and plates[-1] is None
    assert "90%" in {plate.text for plate in plates if plate}
    assert overlaps([plate for plate in plates if plate]).max() == 0


def test_text_wider_than_the_picture_is_not_drawn():
    picture, image = one([2, 2, 20, 690], image=flat(700, 30), name="a name that cannot fit")
    assert picture.shape == image.shape


# Layout.


def test_panel_keeps_both_pictures_whole():
    left, right = flat(100, 150, 10), flat(100, 150, 200)
    sheet = panel(left, right)
    assert (sheet == 10).all(2).sum() >= 100 * 150 and (sheet == 200).all(2).sum() >= 100 * 150
    assert sheet.shape[1] > 300


def test_grid_has_room_for_pictures_of_different_sizes():
    pictures = [flat(50, 80, 1), flat(90, 30, 2), flat(20, 200, 3)]
    sheet = grid(pictures, num_columns=2)
    for picture in pictures:
        assert (sheet == picture[0, 0]).all(2).sum() == picture.shape[0] * picture.shape[1]
    scaled = grid(pictures, num_columns=3, cell_height=40)
    assert (scaled == 2).all(2).sum() == 40 * 13
