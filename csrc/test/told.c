/*
 * Python is told once of what is missing: who asks for it while it is on its way only waits.  After
 * an error, a time-out or a lost page it is told anew.
 */
#include "fake.h"

static struct rig r;

static void ask_told(uint32_t unique, uint64_t page, uint64_t n)
{
	struct nf_event ev;

	ask(&r, unique, 1, page * NF_PAGE, n * NF_PAGE);
	ev = event_within(&r, PATIENCE_MS);
	CHECK(ev.type == NF_EV_MISS && ev.off == page * NF_PAGE && ev.len == n * NF_PAGE);
}

/* The events of two requests come in their order: so the second proves that the first made none. */
static void ask_untold(uint32_t unique, uint64_t page, uint64_t n)
{
	ask(&r, unique, 1, page * NF_PAGE, n * NF_PAGE);
	ask_told(1000 + unique, 100 + unique, 1);
}

static void answered(uint32_t unique, int err)
{
	struct fake_answer a = answer_within(&r, PATIENCE_MS);

	CHECK(a.unique == unique && a.err == err);
}

int main(void)
{
	struct nf_stats stats;
	uint8_t *pages;
	int fd;

	rig_new(&r, 64, 0);
	pages = rig_object(&r, 1, 200 * NF_PAGE, false, &fd);
	CHECK(nf_core_start(r.core) == 0);

	ask_told(1, 0, 4);
	ask_untold(2, 1, 2);
	ask_told(3, 3, 2);		/* a page more */
	ask_untold(4, 0, 5);		/* told in two parts */
	CHECK(nf_filled(r.core, 1, 4 * NF_PAGE, NF_PAGE) == 0);
	ask_untold(5, 2, 3);		/* a part is there, the rest on its way */
	CHECK(nf_filled(r.core, 1, NF_PAGE, 2 * NF_PAGE) == 0);
	answered(2, 0);
	CHECK(nf_filled(r.core, 1, 3 * NF_PAGE, NF_PAGE) == 0);
	answered(3, 0);
	answered(5, 0);
	CHECK(nf_filled(r.core, 1, 0, NF_PAGE) == 0);
	answered(1, 0);
	answered(4, 0);

	/* an error: the next one may have more luck */
	ask_told(6, 8, 2);
	ask_untold(7, 8, 1);
	CHECK(nf_fail(r.core, 1, 8 * NF_PAGE, 5, ENOSPC) == 0);	/* a page's part is all of it */
	answered(6, ENOSPC);
	answered(7, ENOSPC);
	ask_told(8, 8, 1);
	ask_untold(9, 9, 1);		/* which did not fail */
	CHECK(nf_filled(r.core, 1, 8 * NF_PAGE, 2 * NF_PAGE) == 0);
	answered(8, 0);
	answered(9, 0);

	/* pages that were lost */
	CHECK(nf_unfill(r.core, 1, 8 * NF_PAGE, NF_PAGE) == 0);
	ask_told(10, 8, 2);
	CHECK(nf_fail(r.core, 1, 0, UINT64_MAX, EIO) == 0);
	nf_core_stats(r.core, &stats);
	CHECK(stats.pending == 0);
	while (answer_within(&r, SHORT_MS).unique)
		;

	/* whoever was told has forgotten it */
	ask_told(11, 20, 4);
	ask_untold(12, 20, 2);
	CHECK(nf_expire(r.core, 0, EIO) == 3);
	while (answer_within(&r, SHORT_MS).unique)
		;
	ask_told(13, 20, 2);
	ask_told(14, 199, 1);		/* the last */
	rig_free(&r);
	free(pages);
	close(fd);
	return 0;
}
