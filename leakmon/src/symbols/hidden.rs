//! placeholder
use super::ResolvedFrame;
/// x
#[derive(Debug)]
pub struct HideTable;
impl HideTable {
    /// x
    pub fn with_patterns(_: &[String]) -> Self { Self }
    /// x
    pub fn location(&self, _: &[ResolvedFrame]) -> usize { 0 }
}
