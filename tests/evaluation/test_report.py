"""The page: one file, complete, loads nothing, says no number that is none."""

import dataclasses
import html.parser
import json
import re
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest

from magi_jax import config
from magi_jax.evaluation import charts, prediction, report
from tests.evaluation.clips import real_clips, spoil

CONTEXT, CLIPS = 5, 2
VOID = {'meta', 'img'}
STYLE_SHEET = Path(report.__file__).with_name('templates') / 'style.css'


class Page(html.parser.HTMLParser):
    """Attributes by tag, text by section; fails on a tag that closes another one."""

    def __init__(self, source):
        super().__init__()
        self.open, self.tags, self.text = [], {}, ''
        self.feed(source)
        self.close()
        assert not self.open, f'never closed: {self.open}'

    def handle_starttag(self, tag, attrs):
        self.tags.setdefault(tag, []).append(dict(attrs))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.setdefault(tag, []).append(dict(attrs))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


@pytest.fixture(scope='module')
def content():
    long, labels = real_clips(CLIPS, 24)
    real = long[:, :16]
    generated = np.concatenate([real[:, :CONTEXT], spoil(real[:, CONTEXT:], 8)], axis=1)
    short = dict(labels, centres=labels['centres'][:, :16])
    loss = {'training': {50: 1.0, 100: 0.5}, 'validation': {100: 0.6}}
    return report.ReportContent(
        title='Shapes <b> & more',
        summary='What it is. How it was made.',
        prediction=prediction.score_prediction(generated[:, CONTEXT:], real, short),
        clips=report.Clips(real, generated, CONTEXT),
        rollout=prediction.score_rollout(long, long, labels, CONTEXT),
        long_clips=report.Clips(long[:1], long[:1], CONTEXT),
        losses={'Generator': loss, 'Tokenizer': loss},
        settings=dataclasses.asdict(config.Config()),
        commands=['python -m launch.train --config x.py', 'bash </script>'],
        facts={'Device': '2 cores'},
    )


@pytest.fixture(scope='module')
def source(content):
    return report.render(content)


def test_loads_nothing(source):
    assert not re.search(r'(?i)https?://|src="(?!data:)|url\(|@import|<link|<iframe|<object|\bon\w+=', source)
    page = Page(source)
    assert all(image['src'].startswith('data:image/') and image['alt'] for image in page.tags['img'])
    assert [script['type'] for script in page.tags['script']] == ['application/json']
    assert "default-src 'none'" in page.tags['meta'][-1]['content']


def test_is_complete(source, content):
    page = Page(source)
    sections = [section['id'] for section in page.tags['section']]
    assert sections == ['result', 'prediction', 'long-video', 'numbers', 'training', 'settings']
    assert sum('image/webp' in image['src'] for image in page.tags['img']) == CLIPS + 1
    assert sum('image/png' in image['src'] for image in page.tags['img']) == 24 / 4
    assert len([figure for figure in page.tags['figure'] if figure.get('class') == 'chart']) == 2 + 4 + 2
    said = [content.title, content.summary, content.prediction.protocol[1:], content.rollout.protocol[1:], '2 cores']
    said += [
        *content.commands,
        '"learning_rate": 0.0001',
        'Goals: 7 of 7 reached',
        'repeat last frame',
        'plain background',
    ]
    for number in ('psnr_model', 'psnr_repeat_last_context', 'psnr_plain_background', 'centre_error_model'):
        said.append(f'{content.prediction.numbers[number]:.2f}')
    for text in said:
        assert text in page.text, text


def test_holds_the_results_as_json(source, content):
    data = json.loads(re.search(r'id="results">(.*?)</script>', source, re.S)[1])
    assert data == [content.prediction.to_json(), content.rollout.to_json()]


def test_says_what_failed(content):
    rule = next(iter(content.prediction.passes))
    failed = dataclasses.replace(content.prediction, passes={**content.prediction.passes, rule: False})
    source = report.render(dataclasses.replace(content, prediction=failed))
    assert 'Goals: 6 of 7 reached' in source and source.count('<li class="fail">') == 1
    assert source.count('<b>missed</b>') == 1


def test_says_what_was_achieved_before_the_goals(content, source):
    numbers, ends = content.prediction.numbers, content.rollout.numbers
    margin = f'{numbers["psnr_model"]:.2f} dB, {numbers["margin_mean"]:.2f} dB above the better baseline'
    kept = f'colour kept {100 * ends["colour_model_end"]:.1f} % (real videos: {100 * ends["colour_real_end"]:.1f} %)'
    for text in (margin, kept):
        assert 0 < source.index(text) < source.index('Goals:')
    still = dataclasses.replace(content.prediction, numbers={**numbers, 'margin_mean': -1.5})
    assert '1.50 dB below the better baseline' in report.achieved(still, content.rollout)[0]


def test_text_cannot_end_the_data(content):
    sly = dataclasses.replace(content, prediction=dataclasses.replace(content.prediction, protocol='</script><b>'))
    assert report.render(sly).count('</script>') == 1


@pytest.mark.parametrize('value', [float('nan'), float('inf')])
def test_refuses_numbers_that_are_none(content, value):
    numbers = {**content.prediction.numbers, 'margin_mean': value}
    with pytest.raises(ValueError, match='JSON'):
        report.render(dataclasses.replace(content, prediction=dataclasses.replace(content.prediction, numbers=numbers)))
    with pytest.raises(ValueError, match='validation'):
        report.render(dataclasses.replace(content, losses={'Generator': {'validation': {1: 0.5, 2: value}}}))


def test_is_written_whole(content, source, tmp_path):
    path = tmp_path / 'new' / 'report.html'
    report.write_page(path, report.render(content))
    assert path.read_text(encoding='utf-8') == source
    assert [file.name for file in path.parent.iterdir()] == ['report.html']


def test_measured_gaps_are_gaps(content):
    """Show a dash in the table and a shorter line in the chart where an object was never found."""
    curves = {**content.prediction.curves, 'centre_error_model': [1.0, None, 2.0, 3.0, *[None] * 7]}
    numbers = {**content.prediction.numbers, 'centre_error_model': None}
    gaps = dataclasses.replace(content.prediction, curves=curves, numbers=numbers)
    source = report.render(dataclasses.replace(content, prediction=gaps))
    assert '<td>–</td>' in source


def svg(*arguments, **options):
    return ElementTree.fromstring(charts.line_chart(*arguments, **options).svg)


def texts(drawing):
    return [element.text for element in drawing.iter('text')]


def lines(drawing, colour):
    """Return points [N,2] of each piece of the line of this colour. The last path is the sample in the legend."""
    paths = [path.get('d') for path in drawing.iter('path') if f'stroke: {colour}' in path.get('style')]
    pieces = re.split('M', ' '.join(paths[:-1]))[1:]
    return [np.array(re.findall(r'[-\d.]+', piece), float).reshape(-1, 2) for piece in pieces]


def test_chart_places_points_and_leaves_gaps():
    points = [(0, 0.0), (1, 0.5), (2, None), (4, 1.0), (6, 0.5)]
    first, second = lines(svg('Title', ('x', 'y'), {'a': points}, y_range=(0.0, 1.0)), charts.BLUE)
    scale = (second[1, 0] - first[0, 0]) / 6, first[0, 1] - second[0, 1]
    expected = [(x * scale[0], -y * scale[1]) for x, y in points if y is not None]
    np.testing.assert_allclose(np.concatenate([first, second]) - first[0], expected, atol=1e-3)


def test_chart_shows_a_point_between_gaps_as_a_dot():
    def dots(points):
        return len(list(svg('Title', ('x', 'y'), {'a': points}).iter('use')))

    assert dots([(0, 0.0), (1, None), (2, 1.0), (3, None), (4, 0.5), (5, 0.5)]) == 2
    assert dots([(16, 1.0)]) == 1 and dots([(0, 0.0), (1, 1.0)]) == 0


def test_frames_are_whole_numbers():
    assert texts(svg('Title', ('frame', 'y'), {'a': [(6, 0.0), (7, 1.0), (8, 0.5)]}))[:4] == ['6', '7', '8', 'frame']
    assert texts(svg('Title', ('step', 'y'), {'a': [(0, 0.0), (20_000, 1.0)]}))[1] == '5,000'


def test_chart_logarithm():
    drawing = svg('Title', ('x', 'y'), {'a': [(0, 0.01), (1, 0.1), (2, 1.0)]}, logarithmic=True)
    heights = lines(drawing, charts.BLUE)[0][:, 1]
    assert heights[0] - heights[1] == pytest.approx(heights[1] - heights[2], abs=1e-3)
    assert {'0.01', '0.1', '1'} <= set(texts(drawing))
    within_a_decade = svg('Title', ('x', 'y'), {'a': [(0, 1.2), (1, 1.8)]}, logarithmic=True)
    assert len(texts(within_a_decade)) > 5


def test_lines_look_different_as_many_as_a_chart_takes():
    count = len(charts.STYLES)
    drawing = svg('', ('', ''), {str(i): [(0, 1.0), (1, 2.0)] for i in range(count)})
    styles = [path.get('style') for path in drawing.iter('path') if 'currentColor' not in path.get('style')]
    looks = {re.sub(r'stroke-(width|linecap).*?(;|$)', '', style) for style in styles}
    assert len(styles) == 2 * count and len(looks) == count == 8
    with pytest.raises(ValueError, match='9 lines requested, but a chart shows at most 8'):
        charts.line_chart('', ('', ''), {str(i): [(0, 1.0)] for i in range(count + 1)})


def test_chart_is_a_deterministic_part_of_a_page_in_its_colours():
    def draw():
        return charts.line_chart('a < b', ('x', 'y'), {'a': [(0, 0.0), (1, None)], 'b': [(0, 1.0)]}).svg

    chart = draw()
    assert chart == draw() and chart.startswith('<svg viewBox') and '<title>a &lt; b</title>' in chart
    assert not re.search('xmlns|xlink|<metadata|<style|#000000|DejaVu|[12][0-9]{3}-[0-9]{2}', chart)
    colours = {colour for colour, _ in charts.STYLES[:2]} | {'currentColor', 'none'}
    assert set(re.findall(r'(?:fill|stroke): ([^;"]+)', chart)) == colours
    assert 'fill: currentColor' in re.search(r'\.chart svg {(.*?)}', STYLE_SHEET.read_text())[1]


def test_chart_without_a_point_says_so():
    chart = charts.line_chart('Loss', ('step', 'loss'), {'a': [], 'b': [(1, None)]})
    assert chart.svg == ''
    page = report.render_page('frame_times', 'T', 'S', {}, {}, charts=[chart], table=([], []))
    assert 'Loss' in page and 'Nothing to show.' in page
