/* Failed, expired and removed: an error, and never 0, to whom it concerns and to nobody else. */
#include "fake.h"

int main(void)
{
	struct rig r;
	struct fake_answer a;
	struct nf_stats stats;
	uint64_t waited = 0;
	uint8_t *pages;
	int fd, i;

	rig_new(&r, 16, 0);
	pages = rig_object(&r, 1, 16 * NF_PAGE, false, &fd);
	CHECK(nf_core_start(r.core) == 0);
	ask(&r, 1, 1, 0, NF_PAGE);
	ask(&r, 2, 1, 4 * NF_PAGE, NF_PAGE);
	CHECK(event_within(&r, PATIENCE_MS).type && event_within(&r, PATIENCE_MS).type);
	CHECK(nf_fail(r.core, 1, 0, NF_PAGE, ENOSPC) == 0);
	a = answer_within(&r, PATIENCE_MS);
	CHECK(a.unique == 1 && a.err == ENOSPC);
	CHECK(answer_within(&r, SHORT_MS).unique == 0);

	/* what is no errno must not let a reader on, nor does a range without end */
	CHECK(nf_fail(r.core, 1, NF_PAGE, UINT64_MAX, 0) == 0);
	a = answer_within(&r, PATIENCE_MS);
	CHECK(a.unique == 2 && a.err == EIO);

	ask(&r, 3, 1, 0, NF_PAGE);
	CHECK(event_within(&r, PATIENCE_MS).type);
	CHECK(nf_expire(r.core, 3600ull * 1000000000, EIO) == 0);
	CHECK(nf_expire(r.core, 0, -5) == 1);
	a = answer_within(&r, PATIENCE_MS);
	CHECK(a.unique == 3 && a.err == EIO);

	ask(&r, 4, 1, 0, NF_PAGE);
	CHECK(event_within(&r, PATIENCE_MS).type);
	CHECK(nf_object_remove(r.core, 1) == 0);
	a = answer_within(&r, PATIENCE_MS);
	CHECK(a.unique == 4 && a.err == EIO);
	ask(&r, 5, 1, 0, NF_PAGE);
	a = answer_within(&r, PATIENCE_MS);
	CHECK(a.unique == 5 && a.err == EIO);
	CHECK(nf_object_remove(r.core, 1) == -ENOENT);
	CHECK(nf_fail(r.core, 1, 0, 1, EIO) == -ENOENT);
	CHECK(nf_filled(r.core, 1, 0, 1) == -ENOENT);
	do	/* a record is given up behind its answer */
		nf_core_stats(r.core, &stats);
	while (stats.oldest_ns);
	CHECK(stats.events == 5 && stats.pending == 0 && stats.denied == 5);
	for (i = 0; i < NF_WAIT_CLASSES; i++)
		waited += stats.waits[i];
	CHECK(waited == 4);	/* the fifth was refused at once */
	CHECK(stats.waits_ns > 0);
	rig_free(&r);
	free(pages);
	return 0;
}
