/* The table of objects: found by number, inode and the kernel's number; none twice. */
#include "fake.h"

int main(void)
{
	static uint8_t pages[8];
	struct nf_table t = { 0 };
	struct nf_object *o;
	uint32_t id, last = 0;

	nf_table_init(&t);
	for (id = 1000; id; id--)
		CHECK(nf_table_add(&t, id * 7919 % 1009, 5, id, -1, 8 * NF_PAGE, pages, false) == 0);
	CHECK(nf_table_add(&t, 7919 % 1009, 5, 1, -1, 1, pages, false) == -EEXIST);
	CHECK(nf_table_add(&t, 0, 5, 1, -1, 1, pages, false) == -EINVAL);
	CHECK(nf_table_add(&t, 5000, 5, 1, -1, 1, NULL, false) == -EINVAL);
	for (id = 0; (o = nf_object_after(&t, last)); id++) {
		CHECK(o->id > last);
		last = o->id;
		nf_object_put(o);
	}
	CHECK(id == 1000);
	CHECK(!nf_object_after(&t, UINT32_MAX));
	o = nf_object_by_inode(&t, 5, 17);
	CHECK(o && o->id == 17 * 7919 % 1009);
	nf_object_put(o);
	CHECK(!nf_object_by_inode(&t, 6, 17));

	/* the kernel's object has its descriptor once */
	CHECK(nf_table_add(&t, 2000, 0, 0, -1, NF_PAGE, pages, true) == 0);
	CHECK(nf_table_bind(&t, 2000, 3, dup(0)) == 0);
	CHECK(nf_table_bind(&t, 2000, 4, -1) == -EBUSY);
	CHECK(nf_table_bind(&t, 2001, 4, -1) == -ENOENT);
	CHECK(nf_table_bind(&t, 17 * 7919 % 1009, 4, -1) == -EBUSY);
	o = nf_object_by_kernel(&t, 3);
	CHECK(o && o->id == 2000);
	nf_object_put(o);
	CHECK(!nf_object_by_kernel(&t, 4));

	o = nf_table_remove(&t, 2000);
	CHECK(o && o->gone && !nf_object_by_kernel(&t, 3) && !nf_object_by_id(&t, 2000));
	CHECK(!nf_table_remove(&t, 2000));
	nf_object_put(o);

	o = nf_object_by_id(&t, 1);
	CHECK(!nf_object_present(o, 0, 1));
	nf_object_set_present(o, NF_PAGE, 3 * NF_PAGE);
	CHECK(pages[0] == 0xe && nf_object_present(o, NF_PAGE, 3 * NF_PAGE));
	nf_object_clear_present(o, 2 * NF_PAGE, 1);
	CHECK(pages[0] == 0xa && !nf_object_present(o, NF_PAGE, 2 * NF_PAGE));
	CHECK(nf_object_set_mark(o, 8 * NF_PAGE) == -EINVAL && nf_object_set_mark(o, NF_PAGE) == 0);
	CHECK(!nf_object_touch(o, 0, NF_PAGE) && nf_object_touch(o, 0, NF_PAGE + 1));
	CHECK(!nf_object_touch(o, 0, 2 * NF_PAGE));	/* once */
	nf_object_put(o);
	nf_table_destroy(&t);
	return 0;
}
