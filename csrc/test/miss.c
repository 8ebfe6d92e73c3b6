/* A miss waits, is told to Python with whole pages, and ends with the fill that makes it present. */
#include "fake.h"

int main(void)
{
	static uint8_t data[4 * NF_PAGE];
	uint8_t back[NF_PAGE];
	struct rig r;
	struct fake_answer a;
	struct nf_event ev;
	uint8_t *pages;
	int fd;

	memset(data, 0x5a, sizeof(data));
	rig_new(&r, 8, 0);
	pages = rig_object(&r, 1, 16 * NF_PAGE, false, &fd);
	CHECK(nf_core_start(r.core) == 0);
	ask(&r, 7, 1, NF_PAGE + 100, 2 * NF_PAGE);
	ev = event_within(&r, PATIENCE_MS);
	CHECK(ev.type == NF_EV_MISS && ev.object == 1 && ev.pid == 7);
	CHECK(ev.off == NF_PAGE && ev.len == 2 * NF_PAGE + 100);
	/* a part of it is not enough */
	CHECK(nf_fill_flat(r.core, 1, NF_PAGE, data, 2 * NF_PAGE) == 0);
	CHECK(answer_within(&r, SHORT_MS).unique == 0);
	CHECK(nf_fill_flat(r.core, 1, 3 * NF_PAGE, data, NF_PAGE) == 0);
	a = answer_within(&r, PATIENCE_MS);
	CHECK(a.unique == 7 && a.err == 0);
	CHECK(pread(fd, back, sizeof(back), 2 * NF_PAGE) == sizeof(back) && back[17] == 0x5a);
	/* an end that is not a page's, and beyond the object */
	ask(&r, 8, 1, 15 * NF_PAGE, 1 << 20);
	CHECK(event_within(&r, PATIENCE_MS).len == NF_PAGE);
	CHECK(nf_fill_flat(r.core, 1, 15 * NF_PAGE, data, 10) == 0);
	a = answer_within(&r, PATIENCE_MS);
	CHECK(a.unique == 8 && a.err == 0);
	CHECK(nf_fill_flat(r.core, 1, 100, data, 10) == -EBADMSG);
	CHECK(nf_fill_flat(r.core, 2, 0, data, 10) == -ENOENT);
	rig_free(&r);
	free(pages);
	return 0;
}
