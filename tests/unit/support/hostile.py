"""Text that does harm where it is not expected."""

from hypothesis import strategies as st

#: text of any kind that a path can be, with more of what does harm
HOSTILE = st.text(
    st.one_of(
        st.characters(exclude_categories=["Cs"], exclude_characters="\0"),
        st.sampled_from("\n\r\t\x1b\x9b\u2028\u202e'\"\\\\$`; -*\udcff\udc80"),
    ),
    max_size=30,
)
