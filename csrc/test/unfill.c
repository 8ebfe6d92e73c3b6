/* Pages that a failed write-back may have lost are missed again, and come back by a fill. */
#include "fake.h"

int main(void)
{
	static const uint8_t data[2 * NF_PAGE];
	struct rig r;
	uint8_t *pages;
	int fd;

	rig_new(&r, 8, 0);
	pages = rig_object(&r, 1, 16 * NF_PAGE - 5, true, &fd);
	CHECK(nf_core_start(r.core) == 0);
	ask(&r, 1, 1, 0, 16 * NF_PAGE);
	CHECK(answer_within(&r, PATIENCE_MS).unique == 1);
	CHECK(nf_unfill(r.core, 1, 4 * NF_PAGE, 2 * NF_PAGE) == 0);
	ask(&r, 2, 1, 6 * NF_PAGE, NF_PAGE);
	CHECK(answer_within(&r, PATIENCE_MS).unique == 2);
	ask(&r, 3, 1, 0, 16 * NF_PAGE);
	CHECK(event_within(&r, PATIENCE_MS).type == NF_EV_MISS);
	CHECK(answer_within(&r, SHORT_MS).unique == 0);
	CHECK(nf_fill_flat(r.core, 1, 4 * NF_PAGE, data, sizeof(data)) == 0);
	CHECK(answer_within(&r, PATIENCE_MS).unique == 3);
	/* to the very end, which is not a page's */
	CHECK(nf_unfill(r.core, 1, 15 * NF_PAGE, NF_PAGE - 5) == 0);
	ask(&r, 4, 1, 15 * NF_PAGE, 1);
	CHECK(event_within(&r, PATIENCE_MS).type == NF_EV_MISS);
	CHECK(nf_unfill(r.core, 1, 15 * NF_PAGE, NF_PAGE) == -EINVAL);
	CHECK(nf_unfill(r.core, 1, 5, 1) == -EINVAL && nf_unfill(r.core, 2, 0, 1) == -ENOENT);
	rig_free(&r);
	free(pages);
	return 0;
}
